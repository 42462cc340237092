"""Where does a client's call arrive? The gRPC edge: identity, permission, calls to the supervisor, errors back."""
