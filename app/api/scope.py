"""What the parts of the API leave for one another in a request's scope."""

ERROR_SHAPE_SCOPE_KEY = "gatehouse.error_shape"
"""Where an :data:`app.api.errors.ErrorShape` stands for a request of another dialect than ours."""
