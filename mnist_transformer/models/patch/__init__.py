"""The general patch model: exact likelihood of images of any number of channels and levels."""
