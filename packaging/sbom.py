"""The locked libraries in; the list of the packages' parts as SPDX 2.3 JSON out, the same bytes for the same parts."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from pathlib import Path
from typing import Any

import notices
from payload import Library


def document(version: str, epoch: int, wheel: Path, libraries: list[Library]) -> str:
    """The whole document."""
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    own = _package("observer-agent", version, sha256, "Apache-2.0")
    parts = [own] + [_package(x.name, x.version, x.sha256, notices.licence(x)) for x in libraries]
    seed = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(parts, sort_keys=True))
    content = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"observer-agent-{version}",
        "documentNamespace": f"https://spdx.org/spdxdocs/observer-agent-{version}-{seed}",
        "creationInfo": {
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch)),
            "creators": [f"Tool: observer-agent-packaging-{version}"],
        },
        "packages": parts,
        "relationships": [_relation("SPDXRef-DOCUMENT", "DESCRIBES", own["SPDXID"])]
        + [_relation(own["SPDXID"], "CONTAINS", part["SPDXID"]) for part in parts[1:]],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _package(name: str, version: str, sha256: str, licence: str) -> dict[str, Any]:
    """`sha256` is the wheel's."""
    return {
        "SPDXID": f"SPDXRef-{name}",
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": licence,
        "licenseDeclared": licence,
        "copyrightText": "NOASSERTION",
        "checksums": [{"algorithm": "SHA256", "checksumValue": sha256}],
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": f"pkg:pypi/{name}@{version}",
            }
        ],
    }


def _relation(one: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
