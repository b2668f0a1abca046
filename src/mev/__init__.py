"""Control plane for fleets of Solana MEV bots."""
