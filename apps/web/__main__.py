"""`python -m apps.web BUNDLE`."""

from apps.web.server import main

main()
