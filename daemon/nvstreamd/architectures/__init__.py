"""What is a model family's arithmetic? One small file a family."""
