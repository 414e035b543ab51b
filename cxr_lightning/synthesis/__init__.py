"""Making a synthetic data set: the folder, the draws, the classifier that confirms them."""
