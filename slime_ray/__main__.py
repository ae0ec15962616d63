import sys

from slime_ray.cli import main

sys.exit(main())
