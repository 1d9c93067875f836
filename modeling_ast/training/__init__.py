"""What a training run needs: arguments, augmentation, batches, the model to start from, the trainer, its results."""
