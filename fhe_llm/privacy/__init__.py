"""What leaves in the clear, and what pays for it: mechanisms, events, accountants and the ledger.

No epsilon without a mechanism: a mechanism returns a value and the event that describes what was done to it; only
events enter the ledger; ``dp-accounting`` does the mathematics.
"""
