"""``python -m lcdd_lens`` is ``lcdd-lens``."""

import sys

from lcdd_lens.cli import main

sys.exit(main())
