from tests.lens.conftest import make_side

__all__ = ["make_side"]
