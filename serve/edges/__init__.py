"""How requests arrive: sockets, servers and Ray. An edge starts a replica, and stops it."""
