"""``python -m mnist_transformer``."""

from mnist_transformer.cli import main

raise SystemExit(main())
