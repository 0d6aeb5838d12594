"""Where AWS credentials come from: the agent's environment, AWS's own files, a container or the instance; then a role.

The order of AWS's tools: environment, web identity, shared files, container, instance metadata. The last two are asked
over HTTP like any target, so that the operator's policy holds, which denies metadata addresses unless it says
otherwise. Runs on the probe's thread.
"""

from __future__ import annotations

import os
from typing import Final

from observer_agent.clock import parse_iso
from observer_agent.probes._aws import STS, Answer, call, library
from observer_agent.probes._extract import document
from observer_agent.probes._http import Request, exchange
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run, Tools
from observer_agent.probes._url import Url, parse_url
from observer_agent.probes._wallet import Keys

SESSION: Final = "observer-agent"
INSTANCE_SECONDS: Final = 2.0  # off AWS nobody answers there
LARGEST: Final = 65_536
ROLES: Final = "/latest/meta-data/iam/security-credentials/"


def keys_for(region: str, role_arn: str | None, external_id: str | None, run: Run) -> Keys:
    """The credentials to sign with; raises Failed before anything is sent where there are none."""
    wallet, now = run.tools.wallet, run.tools.clock.now()
    if not role_arn:
        return _own(region, run)
    key = ("role", region, role_arn, external_id or "")
    return wallet.get(key, lambda: _assumed(region, role_arn, external_id, run), now)


def _assumed(region: str, role_arn: str, external_id: str | None, run: Run) -> Keys:
    asked = {"Action": "AssumeRole", "RoleArn": role_arn, "RoleSessionName": SESSION, "DurationSeconds": "3600"}
    if external_id:
        asked["ExternalId"] = external_id
    return _of_sts(call(STS, asked, _own(region, run), region, run))


def _own(region: str, run: Run) -> Keys:
    """The agent's own credentials; raises Failed."""
    env, wallet, now = run.tools.env, run.tools.wallet, run.tools.clock.now()
    if env.get("AWS_ACCESS_KEY_ID") and env.get("AWS_SECRET_ACCESS_KEY"):
        keys = Keys(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env.get("AWS_SESSION_TOKEN") or None)
        return _known(keys, run.tools)
    if env.get("AWS_WEB_IDENTITY_TOKEN_FILE") and env.get("AWS_ROLE_ARN"):
        return wallet.get(("web", region), lambda: _from_web_identity(region, run), now)
    keys_in_files = _from_files(run)
    if keys_in_files:
        return _known(keys_in_files, run.tools)
    if env.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") or env.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        return wallet.get(("container",), lambda: _from_container(run), now)
    if env.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        raise _missing("none in the environment or in files, and the instance is not to be asked")
    return wallet.get(("instance",), lambda: _from_instance(run), now)


def _known(keys: Keys, tools: Tools) -> Keys:
    tools.redact.add(keys.secret, keys.token)
    return keys


def _from_files(run: Run) -> Keys | None:
    """The keys of the profile in AWS's credentials or config file."""
    env, lib = run.tools.env, library(run)
    home = env.get("HOME", "")
    profile = env.get("AWS_PROFILE") or env.get("AWS_DEFAULT_PROFILE") or "default"
    shared = env.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.join(home, ".aws", "credentials")
    config = env.get("AWS_CONFIG_FILE") or os.path.join(home, ".aws", "config")
    try:
        found = (
            lib.credentials.SharedCredentialProvider(shared, profile).load()
            or lib.credentials.ConfigProvider(config, profile).load()
        )
    except (lib.error, OSError, ValueError) as error:
        raise _missing(f"AWS's files cannot be used: {type(error).__name__}") from None
    return Keys(found.access_key, found.secret_key, found.token) if found else None


def _from_web_identity(region: str, run: Run) -> Keys:
    env = run.tools.env
    asked = {
        "Action": "AssumeRoleWithWebIdentity",
        "RoleArn": env["AWS_ROLE_ARN"],
        "RoleSessionName": env.get("AWS_ROLE_SESSION_NAME") or SESSION,
        "WebIdentityToken": _read(env["AWS_WEB_IDENTITY_TOKEN_FILE"], "AWS_WEB_IDENTITY_TOKEN_FILE"),
    }
    return _of_sts(call(STS, asked, None, region, run))


def _of_sts(answer: Answer) -> Keys:
    texts = [answer.text(f"Credentials/{name}") for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")]
    if not all(texts):
        raise Failed(Reason.CLOUDWATCH_ERROR, "sts gave no credentials")
    return Keys(texts[0], texts[1], texts[2], parse_iso(answer.text("Credentials/Expiration")))


def _from_container(run: Run) -> Keys:
    env = run.tools.env
    relative = env.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
    token = env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "").strip()
    if file := env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
        token = _read(file, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
    try:
        url = parse_url(f"http://169.254.170.2{relative}" if relative else env["AWS_CONTAINER_CREDENTIALS_FULL_URI"])
        body = _asked(Request("GET", url, (("Authorization", token),) if token else ()), run)
    except (Failed, ValueError) as failure:
        raise _missing(f"the container's address for them: {failure}") from None
    return _of_document(body)


def _from_instance(run: Run) -> Keys:
    """The role of an EC2 instance (IMDSv2); off AWS nobody answers, which may not take the whole deadline."""
    env = run.tools.env
    short = Run(run.tools, min(run.deadline, run.tools.clock.monotonic() + INSTANCE_SECONDS), run.other)
    try:
        base = parse_url(env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254")
        life = (("X-aws-ec2-metadata-token-ttl-seconds", "21600"),)
        token = _asked(Request("PUT", base._replace(target="/latest/api/token"), life), short).decode("latin-1")
        headers = (("X-aws-ec2-metadata-token", _plain(token)),)
        role = _asked(Request("GET", base._replace(target=ROLES), headers), short).decode("latin-1")
        place: Url = base._replace(target=ROLES + _plain(role))
        return _of_document(_asked(Request("GET", place, headers), short))
    except (Failed, ValueError) as failure:
        text = f"none in the environment, in files or from a container; the instance's metadata: {failure}"
        raise _missing(text) from None


def _plain(text: str) -> str:
    """The first line of what the metadata service says, fit for a header or a path; raises ValueError."""
    line = text.strip().partition("\n")[0]
    if not line or not line.isascii() or not line.isprintable() or " " in line:
        raise ValueError("its answer is not understood")
    return line


def _of_document(body: bytes) -> Keys:
    content = document(body)
    names = ("AccessKeyId", "SecretAccessKey", "Token", "Expiration")
    texts = [content.get(name) if isinstance(content, dict) else None for name in names]
    if not all(isinstance(text, str) and text for text in texts):
        raise _missing("the answer with the credentials is not understood")
    return Keys(str(texts[0]), str(texts[1]), str(texts[2]), parse_iso(str(texts[3])))


def _asked(request: Request, run: Run) -> bytes:
    tls = run.tools.contexts.system(True, run) if request.url.scheme == "https" else None
    with exchange(request, run, tls) as response:
        if response.status != 200:
            raise _missing(f"status {response.status}")
        return response.plain_body(LARGEST)


def _read(file: str, name: str) -> str:
    try:
        with open(file, encoding="ascii") as handle:
            return _plain(handle.read(LARGEST))
    except (OSError, ValueError) as error:
        raise _missing(f"the file that {name} names cannot be used: {type(error).__name__}") from None


def _missing(text: str) -> Failed:
    return Failed(Reason.CLOUDWATCH_CREDENTIALS_MISSING, f"no AWS credentials: {text}")
