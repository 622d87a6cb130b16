"""A strict small HTTP/1.1 server, and the framing that both ends of a connection share."""
