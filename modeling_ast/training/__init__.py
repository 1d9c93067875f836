"""What a training run needs: arguments, recipes, augmentation, batches, and the model to start from."""
