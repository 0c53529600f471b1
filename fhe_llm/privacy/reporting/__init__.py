"""What a ledger says, for people: exposure, series and forecast as data, as text, and as one page of HTML.

Start with :func:`report_on`; :func:`page` and :func:`write_page` make the page.
"""
