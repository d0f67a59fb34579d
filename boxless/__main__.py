"""`python -m boxless`: the command line, the same as `boxless`."""

import sys

from pipeline.cli.main import main

sys.exit(main())
