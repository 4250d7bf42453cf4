"""PYTHONPATH=scripts python -m gpu_check: what scripts/gpu_check.sh starts."""

import sys

from gpu_check.main import main

sys.exit(main())
