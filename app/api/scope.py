"""What the parts of the API leave for one another in a request's scope, and its path."""

from starlette.types import Scope

ERROR_SHAPE_SCOPE_KEY = "gatehouse.error_shape"
"""Where an :data:`app.api.errors.ErrorShape` stands for a request of another dialect than ours."""

WATCH_SCOPE_KEY = "gatehouse.watch"
"""Where a server leaves what tells, without a task that waits for it, that a client goes away:
given a function, which it will call at most once, it returns what has it forget that function."""


def route_path(scope: Scope) -> str:
    """The path of a request without the prefix that a proxy or a mount put before it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        return path.removeprefix(root) or "/"
    return path
