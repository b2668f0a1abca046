"""Tips to Jito: lamports that one of its eight tip accounts gained in a transaction."""

from mev.capture.model import Transaction

TIP_ACCOUNTS = frozenset(
    {
        "96gYZGLnJYVFmbjzopPSU6QiEV5fGqZNyN9nmNhvrZU5",
        "HFqU5x63VTqvQss8hp11i4wVV8bD44PvwucfZ2bU7gRe",
        "Cw8CFyM9FkoMi7K7Crf6HNQqf4uEMzpKw6QNghXLvLkY",
        "ADaUMid9yfUytqMBgopwjb2DTLSokTSzL1zt6iGPaS49",
        "DfXygSm4jCyNCybVYYK6DwvWqjKee8pbDmJGcLWNDXjh",
        "ADuUkR4vqLUMWXxW9gh6D6L8pMSawimctcNZ5pGwDcEt",
        "DttWaMuVvTiduZRnguLF7jNxTgiMBZ1hyAumKUiL2KRL",
        "3AVi9Tg9Uo68tJfuvoKvqKNWKkC5wPdSSdeBnizKZ6jT",
    }
)


def lamports(tx: Transaction) -> int:
    """Return what the transaction paid in tips; 0 when it paid none.

    A tip account that went down is being emptied by its owner, which is no tip.
    """
    if TIP_ACCOUNTS.isdisjoint(tx.keys):
        return 0
    changes = (tx.post_lamports[index] - tx.pre_lamports[index] for index, key in enumerate(tx.keys) if key in TIP_ACCOUNTS)
    return sum(change for change in changes if change > 0)
