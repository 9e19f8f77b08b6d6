import medsd  # noqa: F401 - first of all: it switches off what libraries report, which many tests import directly
