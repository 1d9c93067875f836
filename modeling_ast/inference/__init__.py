"""What a user of a trained model needs."""
