"""Authentication and authorization: users, roles, sessions, access tokens and API keys.

`model` and `errors` are used by all packages; `dependencies` protects endpoints; `authenticator`
maps credentials to principals for HTTP, ingest and WebSocket; `service` and `keys` contain the
rules; `store` contains the stored data.
"""
