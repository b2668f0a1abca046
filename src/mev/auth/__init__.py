"""Who is asking. Until there are accounts: one master key."""
