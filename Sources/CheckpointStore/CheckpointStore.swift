// CheckpointStore
