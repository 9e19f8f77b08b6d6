"""`python -m medsd.apps.web BUNDLE`."""

from medsd.apps.web.server import main

main()
