"""Active agents at the ends of a path. They speak and listen with sockets of their own and know nothing of the engine."""
