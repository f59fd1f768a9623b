"""From a host name to an open connection: resolver and sockets."""
