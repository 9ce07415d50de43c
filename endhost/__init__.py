"""Active agents at the ends of a path. They have sockets of their own and know nothing of the engine."""
