"""The Helm chart: what can be read of it without Helm; and, with its engine at hand (extra `chart`), what it renders.

The engine is Helm's own, through helm-python-sdk; every manifest is held against Kubernetes' schemas, strictly.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import observer_agent
from observer_agent.variables import VARIABLES

CHART = Path(__file__).parent.parent / "packaging" / "helm" / "observer-agent"
FULL = {
    "existingSecret": {"name": "mine", "key": "console"},
    "url": "https://console.example.com",
    "ca": {"configMap": "authority"},
    "discovery": {"enabled": True, "namespaces": ["left", "right"]},
    "clusterStats": {"enabled": True},
    "networkPolicy": {"enabled": True, "extraEgress": [{"ports": [{"port": 5432, "protocol": "TCP"}]}]},
    "daemonset": {"enabled": True},
    "persistence": {"existingClaim": "kept"},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"}],
    "podLabels": {"team": "watch"},
    "podAnnotations": {"note": "yes"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
    "imagePullSecrets": [{"name": "registry"}],
}
CASES = {
    "plain": {"token": "lh_canary"},
    "full": FULL,
    "everywhere": {"token": "lh_canary", "discovery": {"enabled": True}, "persistence": {"enabled": False}},
    "star": {"token": "lh_canary", "discovery": {"enabled": True, "namespaces": ["left", "*"]}},
    "closed": {"token": "lh_canary", "networkPolicy": {"enabled": True, "anywhere": False}},
}


def yaml(text):
    return YAML(typ="safe").load(text)


def keys(values, path=""):
    for name, value in values.items():
        yield f"{path}{name}"
        if isinstance(value, dict):
            yield from keys(value, f"{path}{name}.")


def text_of_templates():
    return "".join(file.read_text() for file in sorted((CHART / "templates").iterdir()))


# Without Helm


def test_the_chart_has_the_version_of_the_package():
    chart = yaml((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == observer_agent.__version__


def test_every_value_is_in_the_schema_and_used_and_none_is_used_that_is_not_there():
    values = yaml((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]) == set(values) | {"global"}
    for name, value in values.items():
        if isinstance(value, dict) and "properties" in schema["properties"][name]:
            assert set(schema["properties"][name]["properties"]) == set(value), name
    text = text_of_templates().replace("$policy.", ".Values.networkPolicy.")
    used = set(re.findall(r"\.Values\.([A-Za-z.]+)", text))
    there = set(keys(values))
    assert used <= there
    leaves = {key for key in there if not any(other.startswith(f"{key}.") for other in there)}
    assert {leaf for leaf in leaves if not any(leaf == u or leaf.startswith(f"{u}.") for u in used)} == set()


def test_every_setting_that_the_chart_names_is_one_of_the_agents():
    named = set(re.findall(r"- \{name: ([A-Z_]+),", text_of_templates()))
    assert named - set(VARIABLES) == {"REQUESTS_CA_BUNDLE"}


# With Helm's engine


@pytest.fixture(scope="module")
def render():
    helm = pytest.importorskip("helm_python", reason="Helm's engine: the extra `chart`")
    chart = helm.Chart.load(CHART)

    def rendered(values):
        texts = chart.render(values, name="lh", namespace="watch")
        documents = [
            document
            for name, text in texts.items() if name.endswith(".yaml")
            for document in YAML(typ="safe").load_all(text) if document
        ]  # fmt: skip
        return {(d["kind"], d["metadata"]["name"], d["metadata"].get("namespace")): d for d in documents}

    yield rendered
    chart.close()


def pods(found):
    return [d["spec"]["template"]["spec"] for (kind, _, _), d in found.items() if kind in ("StatefulSet", "DaemonSet")]


def environment(pod):
    return {row["name"]: row.get("value") for row in pod["containers"][0]["env"]}


@pytest.mark.parametrize("case", CASES)
def test_lint_has_nothing_to_say(case):
    helm = pytest.importorskip("helm_python")
    report = helm.lint(CHART, CASES[case], strict=True)
    assert report["errors"] == [] and {message["severity"] for message in report["messages"]} <= {1}


@pytest.mark.parametrize("case", CASES)
def test_every_manifest_is_valid(render, case):
    validate = pytest.importorskip("kubernetes_validate")
    found = render(CASES[case])
    assert found
    for document in found.values():
        validate.validate(document, validate.latest_version(), strict=True)


@pytest.mark.parametrize("values", [{}, {"token": "a", "existingSecret": {"name": "b"}}, {"token": "a", "tokn": "b"}])
def test_a_token_in_no_place_or_in_two_and_a_key_that_is_not_known_are_refused(render, values):
    helm = pytest.importorskip("helm_python")
    with pytest.raises(helm.HelmError):
        render(values)


@pytest.mark.parametrize("case", CASES)
def test_pods_are_read_only_without_root_and_without_privileges(render, case):
    for pod in pods(render(CASES[case])):
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert writable == {"/var/lib/observer-agent", "/tmp"}
        assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("case", CASES)
def test_probes_ask_what_does_not_depend_on_the_console(render, case):
    for pod in pods(render(CASES[case])):
        (container,) = pod["containers"]
        assert container["livenessProbe"]["httpGet"] == {"path": "/healthz/live", "port": "health"}
        assert container["readinessProbe"]["httpGet"] == {"path": "/healthz/ready", "port": "health"}
        port = container["ports"][0]
        assert port["name"] == "health" and environment(pod)["LIGHTHOUSE_HEALTH_PORT"] == str(port["containerPort"])


@pytest.mark.parametrize("case", CASES)
def test_the_token_is_a_file_and_stands_in_the_secret_alone(render, case):
    found = render(CASES[case])
    for pod in pods(found):
        assert environment(pod)["LIGHTHOUSE_TOKEN_FILE"] == "/run/lighthouse/token"
        secret = next(v["secret"] for v in pod["volumes"] if v["name"] == "token")
        mine = CASES[case].get("existingSecret")
        assert secret["secretName"] == (mine["name"] if mine else "lh-observer-agent")
        assert secret["items"] == [{"key": mine["key"] if mine else "token", "path": "token"}]
    assert {kind for (kind, _, _), document in found.items() if "lh_canary" in json.dumps(document)} <= {"Secret"}


def test_section_13_the_defects_of_the_original_are_not_here(render):
    found = render(FULL)
    for document in found.values():  # each label once: YAML readers differ on which of two counts
        assert "app.kubernetes.io/component" in document["metadata"]["labels"]
    text = (CHART / "templates" / "daemonset.yaml").read_text()
    assert text.count("app.kubernetes.io/component") == 0, "labels come from the helper, which is given the component"
    stateful = found["StatefulSet", "lh-observer-agent", "watch"]["spec"]
    service = found["Service", stateful["serviceName"], "watch"]["spec"]
    assert service["clusterIP"] == "None"
    assert service["selector"] == stateful["selector"]["matchLabels"]
    readme = (CHART / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+?)\)", readme):
        assert (CHART / target).exists(), target


def test_the_selectors_of_the_two_kinds_of_pod_are_disjoint(render):
    found = render(FULL)
    chosen = [
        d["spec"]["selector"]["matchLabels"]
        for (kind, _, _), d in found.items()
        if kind in ("StatefulSet", "DaemonSet")
    ]
    assert len({tuple(sorted(one.items())) for one in chosen}) == 2
    for (kind, _, _), document in found.items():
        if kind in ("StatefulSet", "DaemonSet"):
            labels = document["spec"]["template"]["metadata"]["labels"]
            assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_nothing_of_the_cluster_is_read_unless_asked_for(render):
    found = render(CASES["plain"])
    assert not [key for key in found if "Role" in key[0]]
    (pod,) = pods(found)
    assert pod["automountServiceAccountToken"] is False
    names = environment(pod)
    assert "LIGHTHOUSE_DISCOVERY_ENABLED" not in names and "LIGHTHOUSE_HOST_METRICS" not in names
    assert found["ServiceAccount", "lh-observer-agent", "watch"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("case", ["everywhere", "star"])
def test_discovery_everywhere_has_one_cluster_role_that_only_reads(render, case):
    found = render(CASES[case])
    name = "watch-lh-observer-agent-discovery"
    rules = found["ClusterRole", name, None]["rules"]
    assert not [key for key in found if key[0] in ("Role", "RoleBinding")]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert {resource for rule in rules for resource in rule["resources"]} == {"services", "ingresses", "httproutes"}
    subject = {"kind": "ServiceAccount", "name": "lh-observer-agent", "namespace": "watch"}
    assert found["ClusterRoleBinding", name, None]["subjects"] == [subject]
    (pod,) = pods(found)
    assert pod["automountServiceAccountToken"] is True


def test_discovery_by_namespace_has_a_role_in_each_and_nothing_wider(render):
    found = render({**FULL, "clusterStats": {"enabled": False}})
    assert not [key for key in found if key[0].startswith("ClusterRole")]
    name = "watch-lh-observer-agent-discovery"
    for namespace in ("left", "right"):
        assert found["Role", name, namespace]["rules"]
        binding = found["RoleBinding", name, namespace]
        assert binding["roleRef"]["name"] == name and binding["subjects"][0]["namespace"] == "watch"
    central = found["StatefulSet", "lh-observer-agent", "watch"]["spec"]["template"]["spec"]
    assert environment(central)["LIGHTHOUSE_DISCOVERY_NAMESPACES"] == "left,right"


def test_host_pods_have_the_nodes_files_read_only_and_no_token_of_the_cluster(render):
    pod = render(FULL)["DaemonSet", "lh-observer-agent-host", "watch"]["spec"]["template"]["spec"]
    names = environment(pod)
    assert (names["LIGHTHOUSE_ROLE"], names["LIGHTHOUSE_HOST_METRICS"]) == ("host_metrics", "true")
    assert pod["automountServiceAccountToken"] is False
    assert "hostNetwork" not in pod and "hostPID" not in pod
    host = {v["name"] for v in pod["volumes"] if "hostPath" in v}
    assert host == {"proc", "root"}
    assert all(m["readOnly"] for m in pod["containers"][0]["volumeMounts"] if m["name"] in host)


def test_the_network_policy_lets_checks_out_and_only_the_health_port_in(render):
    found = render(FULL)
    rules = found["NetworkPolicy", "lh-observer-agent", "watch"]["spec"]
    assert rules["ingress"] == [{"ports": [{"protocol": "TCP", "port": "health"}]}]
    open_to = [rule for rule in rules["egress"] if "ports" not in rule]
    assert len(open_to) == 1 and {"namespaceSelector": {}} in open_to[0]["to"]
    assert {block["ipBlock"]["cidr"] for block in open_to[0]["to"] if "ipBlock" in block} == {"0.0.0.0/0", "::/0"}
    ports = [{port["port"] for port in rule["ports"]} for rule in rules["egress"] if "ports" in rule]
    assert ports == [{53}, {443}, {443, 6443}, {5432}]


def test_a_closed_network_policy_has_names_and_the_console_alone(render):
    rules = render(CASES["closed"])["NetworkPolicy", "lh-observer-agent", "watch"]["spec"]
    assert [{port["port"] for port in rule["ports"]} for rule in rules["egress"]] == [{53}, {443}]
