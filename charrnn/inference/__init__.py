"""What a trained model is used for: scores of a text, and samples."""
