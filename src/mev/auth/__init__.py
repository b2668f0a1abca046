"""Who is asking, and what they may do: users, roles, sessions, access tokens, API keys.

`model` and `errors` are for everyone; `dependencies` guards endpoints; `authenticator` answers from credentials to principals for the
front, the ingest lane and the WebSocket alike; `service` and `keys` hold the rules; `store` is all that is kept.
"""
