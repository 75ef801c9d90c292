"""The patch model with the law of MNIST's grey levels: today's flagship, on its own."""
