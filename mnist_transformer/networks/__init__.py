"""Bricks of models, which know no data set and no family."""
