// CheckpointEngine
