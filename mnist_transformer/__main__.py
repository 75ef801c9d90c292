"""``python -m mnist_transformer``."""

import sys

from mnist_transformer.cli import main

sys.exit(main())
