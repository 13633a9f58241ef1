"""`python -m distill`, for launchers that want a module."""

from distill.cli import main

raise SystemExit(main())
