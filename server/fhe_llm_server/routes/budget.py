"""The caller's own quota of work. Quotas are set at the ledger by its operator; no route changes one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from fhe_llm_server.auth import TENANT
from fhe_llm_server.proxy import Proxy

router = APIRouter(prefix="/v1/budget")


@router.get("")
async def budget(request: Request) -> Response:
    """The tenant's name in the ledger and its balances; amounts are integers, times milliseconds since 1970 UTC."""
    proxy: Proxy = request.app.state.proxy
    tenant: str = request.scope[TENANT]
    balances = [
        {
            "unit": balance.unit,
            "window": balance.window,
            "spent": balance.spent,
            "pending": balance.pending,
            "limit": balance.budget.limit if balance.budget else None,
            "left": balance.left,
            "refreshes_at": balance.refreshes_at,
        }
        for balance in await proxy.meter.balances(tenant)
        if balance.kind == "work"
    ]
    return JSONResponse({"tenant": tenant, "balances": balances}, headers={"cache-control": "no-store"})
