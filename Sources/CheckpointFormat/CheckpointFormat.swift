// CheckpointFormat
