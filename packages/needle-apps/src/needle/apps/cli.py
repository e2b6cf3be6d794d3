"""The console script: `needle`."""

from needle.apps.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
