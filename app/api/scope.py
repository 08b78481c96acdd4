"""What the parts of the API leave for one another in a request's scope."""

ERROR_SHAPE_SCOPE_KEY = "gatehouse.error_shape"
"""Where an :data:`app.api.errors.ErrorShape` stands for a request of another dialect than ours."""

WATCH_SCOPE_KEY = "gatehouse.watch"
"""Where a server leaves what tells, without a task that waits for it, that a client goes away:
given a function, which it will call at most once, it returns what has it forget that function."""
