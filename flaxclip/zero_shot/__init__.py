"""Classes from their names alone: prompts for each class, and the classifier that they make."""
