"""The source type `cloudwatch`, against a local server that speaks AWS's query protocol (tests/aws.py)."""

from __future__ import annotations

import os
import subprocess
import sys

import botocore.parsers
import botocore.serialize
import botocore.session
import pytest

from observer_agent import probes
from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault
from observer_agent.probes import _aws, cloudwatch
from tests import aws, servers
from tests.aws import ACCESS, ROLE, SECRET, TEMPORARY, Cloud, assumed, metric_data
from tests.contracts.test_probe import nothing_left
from tests.servers import Server, answer, make_prober, make_tools, refused_port, scripted

NOW = 1_800_000_030.0  # 30 s into a minute
MINUTE = 1_800_000_000
CONFIG = {"region": aws.REGION, "namespace": "AWS/EC2", "metric_name": "CPUUtilization", "timeout_ms": 3000}
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}


@pytest.fixture(autouse=True)
def no_home(tmp_path, monkeypatch):
    """botocore may find nothing of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


class Clock(servers.Clock):
    """The wall clock stands at a moment; the monotonic one runs."""

    def __init__(self, now=NOW):
        self.moment = now

    def now(self):
        return self.moment


def prober(server, env=KEYS, clock=None, **options):
    env = {"AWS_ENDPOINT_URL": server.url, "HOME": os.environ["HOME"], **env}
    return make_prober(env, clock=clock or Clock(), **options)


def look(prober, **config):
    return prober.look("cloudwatch", probes.parse("cloudwatch", {**CONFIG, **config}))


def ask(*replies, env=KEYS, **config):
    cloud = Cloud(GetMetricData=list(replies))
    with nothing_left(), Server(cloud) as server:
        reading = look(prober(server, env), **config)
    return reading, cloud


# -- values


def test_the_newest_point_of_a_complete_period():
    reading, cloud = ask(metric_data([(MINUTE - 60, "41.5"), (MINUTE - 120, "3")]), dimensions={"InstanceId": "i-1"})
    assert (reading.value, reading.reason) == (41.5, None)
    assert reading.detail["sample_time"] == MINUTE - 60
    assert {"region", "namespace", "metric_name", "statistic", "period_seconds"} <= set(reading.detail)
    assert cloud.asked[0]["Action"] == "GetMetricData"
    assert set(reading.phases) == {"resolve", "connect", "first_byte", "body"}


@pytest.mark.parametrize(("period", "start"), [(60, 600), (300, 1500), (900, 4500), (3600, 18_000)])
def test_w35_the_period_in_progress_is_not_asked_for(period, start):
    _, cloud = ask(metric_data([]), period_seconds=period)
    end = int(NOW // period * period)
    assert cloud.asked[0]["EndTime"] == aws.stamp(end)
    assert cloud.asked[0]["StartTime"] == aws.stamp(end - start)


def test_w35_a_point_of_the_period_in_progress_does_not_count():
    reading, _ = ask(metric_data([(MINUTE, "1"), (MINUTE - 60, "60")]), statistic="Sum")
    assert reading.value == 60.0
    reading, _ = ask(metric_data([(MINUTE, "1")]), statistic="Sum")
    assert reading.reason == "cloudwatch_no_data"


def test_w35_pages_are_followed_until_there_is_a_point():
    reading, cloud = ask(
        metric_data([], status="PartialData", token="next-1"),
        metric_data([], status="PartialData", token="next-2"),
        metric_data([(MINUTE - 300, "7")]),
    )
    assert reading.value == 7.0
    assert [asked.get("NextToken") for asked in cloud.asked] == [None, "next-1", "next-2"]


def test_w35_pages_without_end_end():
    reading, cloud = ask(metric_data([], status="PartialData", token="again"))
    assert (reading.reason, len(cloud.asked)) == ("cloudwatch_no_data", cloudwatch.PAGES)


def test_points_that_are_no_finite_numbers_do_not_count():
    reading, _ = ask(metric_data([(MINUTE - 60, "NaN"), (MINUTE - 120, "junk"), (MINUTE - 180, "5")]))
    assert reading.value == 5.0


def test_w7_the_sample_s_time_is_detail_only():
    reading, _ = ask(metric_data([(MINUTE - 600, "1")]))
    assert reading.detail["sample_time"] == MINUTE - 600


# -- what AWS's own library says of our requests and of our server


def test_the_request_is_the_one_that_aws_s_own_library_writes():
    config = probes.parse("cloudwatch", {**CONFIG, "dimensions": {"b": "2", "a": "1"}, "statistic": "p99.9"})
    operation = botocore.session.get_session().get_service_model("cloudwatch").operation_model("GetMetricData")
    metric = {
        "Namespace": "AWS/EC2",
        "MetricName": "CPUUtilization",
        "Dimensions": [{"Name": "a", "Value": "1"}, {"Name": "b", "Value": "2"}],
    }
    theirs = botocore.serialize.create_serializer("query").serialize_to_request(
        {
            "StartTime": aws.stamp(MINUTE - 600),
            "EndTime": aws.stamp(MINUTE),
            "ScanBy": "TimestampDescending",
            "MetricDataQueries": [
                {"Id": "m1", "ReturnData": True, "MetricStat": {"Metric": metric, "Period": 60, "Stat": "p99.9"}}
            ],
        },
        operation,
    )["body"]
    ours = {"Version": "2010-08-01", **cloudwatch.question(config, NOW)}
    assert {name: str(value) for name, value in theirs.items()} == ours


@pytest.mark.parametrize("service", ["cloudwatch", "sts"])
def test_our_server_s_answers_are_what_aws_s_own_library_reads(service):
    model = botocore.session.get_session().get_service_model(service)
    parser = botocore.parsers.create_parser("query")

    def read(action, reply, status=200):
        body = reply.partition(b"\r\n\r\n")[2]
        shape = model.operation_model(action).output_shape
        return parser.parse({"body": body, "headers": {}, "status_code": status}, shape)

    assert read("GetMetricData" if service == "cloudwatch" else "AssumeRole", aws.error("Throttling"), 400)["Error"][
        "Code"
    ] == ("Throttling")
    if service == "sts":
        assert read("AssumeRole", assumed(NOW))["Credentials"]["SessionToken"] == TEMPORARY[2]
        return
    (found,) = read("GetMetricData", metric_data([(MINUTE, "4.5")], "PartialData"))["MetricDataResults"]
    assert (found["Id"], found["Values"], found["StatusCode"]) == ("m1", [4.5], "PartialData")
    assert found["Timestamps"][0].timestamp() == MINUTE


# -- reasons


@pytest.mark.parametrize(
    ("reply", "reason", "fault"),
    [
        (metric_data([]), "cloudwatch_no_data", Fault.CONFIG),
        (metric_data([], status="Forbidden"), "cloudwatch_access_denied", Fault.CONFIG),
        (metric_data([], status="InternalError"), "cloudwatch_server_error", Fault.TARGET),
        (aws.error("AccessDenied", 403), "cloudwatch_access_denied", Fault.CONFIG),
        (aws.error("AccessDeniedException", 400), "cloudwatch_access_denied", Fault.CONFIG),
        (aws.error("UnrecognizedClientException", 400), "cloudwatch_access_denied", Fault.CONFIG),
        (aws.error("InvalidClientTokenId", 403), "cloudwatch_access_denied", Fault.CONFIG),
        (answer("no XML", 403), "cloudwatch_access_denied", Fault.CONFIG),
        (aws.error("Throttling", 400), "cloudwatch_throttled", Fault.TARGET),
        (aws.error("ThrottlingException", 400), "cloudwatch_throttled", Fault.TARGET),
        (aws.error("RequestLimitExceeded", 503), "cloudwatch_throttled", Fault.TARGET),
        (answer(status=429), "cloudwatch_throttled", Fault.TARGET),
        (aws.error("InvalidParameterValue", 400), "cloudwatch_invalid_parameter", Fault.CONFIG),
        (aws.error("InvalidParameterCombination", 400), "cloudwatch_invalid_parameter", Fault.CONFIG),
        (aws.error("ValidationError", 400), "cloudwatch_invalid_parameter", Fault.CONFIG),
        (aws.error("ResourceNotFound", 404), "cloudwatch_resource_not_found", Fault.CONFIG),
        (aws.error("ResourceNotFoundException", 404), "cloudwatch_resource_not_found", Fault.CONFIG),
        (aws.error("ExpiredToken", 403), "cloudwatch_expired_credentials", Fault.CONFIG),
        (aws.error("ExpiredTokenException", 400), "cloudwatch_expired_credentials", Fault.CONFIG),
        (aws.error("InternalFailure", 500), "cloudwatch_server_error", Fault.TARGET),
        (answer("oops", 502), "cloudwatch_server_error", Fault.TARGET),
        (aws.error("SomethingNew", 400), "cloudwatch_error", Fault.TARGET),
        (answer(status=307, Location="http://169.254.169.254/"), "cloudwatch_error", Fault.TARGET),
        (answer("<html>"), "cloudwatch_error", Fault.TARGET),
        (answer('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'), "cloudwatch_error", Fault.TARGET),
        (answer(b"\xff\xfe"), "cloudwatch_error", Fault.TARGET),
        (answer(b" " * 1_048_577), "body_too_large", Fault.TARGET),
    ],
)
def test_w35_reasons(reply, reason, fault):
    reading, _ = ask(reply)
    assert (reading.value, reading.reason, reading.fault) == (None, reason, fault), reading.detail


def test_what_aws_says_is_not_shown_but_for_its_code():
    message = f"{ROLE} may not, and the canonical string was {TEMPORARY[2]}"
    reading, _ = ask(aws.error("AccessDenied", 403, message))
    assert reading.detail["error"] == "monitoring answered 403 (AccessDenied)"
    assert ROLE not in str(reading) and TEMPORARY[2] not in str(reading)


def test_w35_a_network_s_failures_have_names_of_their_own():
    with refused_port() as port:
        reading = look(make_prober({**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}))
    assert (reading.reason, reading.fault) == ("cloudwatch_unreachable", Fault.TARGET)
    assert reading.detail["code"] == "ECONNREFUSED"
    reading = look(make_prober(KEYS))
    assert (reading.reason, reading.detail["code"]) == ("cloudwatch_unreachable", "ENOTFOUND")
    assert look(make_prober({**KEYS, "AWS_ENDPOINT_URL": "http://169.254.169.254"})).reason == "policy_denied"


@pytest.mark.slow
@pytest.mark.parametrize("handler", [servers.tarpit, servers.drip, servers.drip_body])
def test_w35_one_deadline_for_everything(handler):
    with nothing_left(), Server(handler) as server:
        asking = prober(server, clock=servers.Clock())
        asking.look("cloudwatch", probes.parse("cloudwatch", {**CONFIG, "timeout_ms": 1500}))  # loads botocore
        reading = look(asking, timeout_ms=300)
    assert (reading.reason, reading.fault) == ("cloudwatch_timeout", Fault.TARGET)
    assert reading.duration_ms < 350


def test_w35_the_role_s_call_is_under_the_same_deadline():
    cloud = Cloud(GetMetricData=[metric_data([])])
    with nothing_left(), Server(cloud) as server, Server(servers.tarpit) as tarpit:
        env = {**KEYS, "AWS_ENDPOINT_URL_STS": tarpit.url}
        asking = prober(server, env, servers.Clock())
        look(asking)
        reading = look(asking, role_arn=ROLE, timeout_ms=300)
    assert reading.reason == "cloudwatch_timeout"
    assert reading.duration_ms < 350


def test_the_body_of_an_error_is_not_waited_for():
    def slow(conn, server):
        servers.read_request(conn)
        conn.sendall(b"HTTP/1.1 503 X\r\nContent-Length: 100\r\n\r\n<")
        server.stopping.wait()

    with nothing_left(), Server(slow) as server:
        reading = look(prober(server, clock=servers.Clock()), timeout_ms=8000)
    assert reading.reason == "cloudwatch_server_error"
    assert reading.duration_ms < 5000


@pytest.mark.slow
def test_off_aws_nobody_answers_for_the_instance_which_does_not_take_the_whole_deadline():
    with nothing_left(), Server(servers.tarpit) as server:
        env = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url}
        reading = look(prober(server, env, servers.Clock()), timeout_ms=20_000)
    assert reading.reason == "cloudwatch_credentials_missing"
    assert reading.duration_ms < 10_000


def test_a_bad_endpoint_is_the_operator_s():
    reading = look(make_prober({**KEYS, "AWS_ENDPOINT_URL_CLOUDWATCH": "ftp://x"}))
    assert (reading.reason, reading.fault) == ("cloudwatch_error", Fault.CONFIG)


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu-central-1", "monitoring.eu-central-1.amazonaws.com"),
        ("us-gov-west-1", "monitoring.us-gov-west-1.amazonaws.com"),
        ("cn-north-1", "monitoring.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_where_a_region_is(region, host):
    run = probes._tools.Run(make_tools(), 0.0, probes.Reason.CLOUDWATCH_ERROR)
    assert _aws.endpoint(_aws.MONITORING, region, run).text == f"https://{host}/"


def test_without_botocore_the_reason_names_the_command(tmp_path):
    """In a process of its own, in which the package cannot be imported."""
    program = (
        "import sys; sys.modules['botocore'] = None\n"
        "from observer_agent import probes; from tests.servers import make_prober\n"
        "r = make_prober({}).look('cloudwatch', probes.parse('cloudwatch', "
        "{'region': 'x', 'namespace': 'n', 'metric_name': 'm'}))\n"
        "print(r.reason, r.fault, r.detail['error'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    said = "source_unavailable agent botocore is not installed: pip install 'observer-agent[cloudwatch]'"
    assert done.stdout.strip() == said


def test_botocore_is_not_imported_before_it_is_needed():
    program = "import sys; from observer_agent import probes; print([m for m in sys.modules if 'boto' in m])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- credentials


def test_credentials_of_the_environment_sign_the_request():
    reading, cloud = ask(metric_data([(MINUTE - 60, "1")]))
    assert reading.value == 1.0
    assert f"Credential={ACCESS}/" in cloud.headers[0]["authorization"]
    reading, _ = ask(metric_data([(MINUTE - 60, "1")]), env={**KEYS, "AWS_SECRET_ACCESS_KEY": "another"})
    assert reading.reason == "cloudwatch_access_denied"
    assert "another" not in str(reading)


def test_a_session_token_goes_along():
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    reading, cloud = ask(metric_data([(MINUTE - 60, "1")]), env=dict(zip(names, TEMPORARY, strict=True)))
    assert reading.value == 1.0
    assert cloud.headers[0]["x-amz-security-token"] == TEMPORARY[2]


@pytest.mark.parametrize("file", ["credentials", "config"])
def test_credentials_of_aws_s_own_files(file, tmp_path):
    section = "other" if file == "credentials" else "profile other"
    (tmp_path / "there").write_text(f"[{section}]\naws_access_key_id={ACCESS}\naws_secret_access_key={SECRET}\n")
    name = "AWS_SHARED_CREDENTIALS_FILE" if file == "credentials" else "AWS_CONFIG_FILE"
    env = {name: str(tmp_path / "there"), "AWS_PROFILE": "other"}
    assert ask(metric_data([(MINUTE - 60, "1")]), env=env)[0].value == 1.0


def test_credentials_of_the_home_directory(tmp_path):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        f"[default]\naws_access_key_id={ACCESS}\naws_secret_access_key={SECRET}\n"
    )
    assert ask(metric_data([(MINUTE - 60, "1")]), env={})[0].value == 1.0


@pytest.mark.parametrize("text", ["no ini", "[default]\naws_access_key_id=x\n"])
def test_files_that_cannot_be_used(text, tmp_path):
    (tmp_path / "there").write_text(text)
    reading, cloud = ask(metric_data([]), env={"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "there")})
    assert (reading.reason, reading.fault) == ("cloudwatch_credentials_missing", Fault.CONFIG)
    assert cloud.asked == []


def test_no_credentials_at_all():
    reading, cloud = ask(metric_data([]), env={"AWS_EC2_METADATA_DISABLED": "true"})
    assert (reading.reason, reading.fault) == ("cloudwatch_credentials_missing", Fault.CONFIG)
    assert cloud.asked == []


def test_the_policy_denies_the_instance_s_metadata_unless_it_says_otherwise():
    reading, _ = ask(metric_data([]), env={})
    assert reading.reason == "cloudwatch_credentials_missing"
    assert "metadata service" in reading.detail["error"]


def test_credentials_of_an_instance_and_of_a_container():
    import json

    access, secret, token = TEMPORARY
    found = {"AccessKeyId": access, "SecretAccessKey": secret, "Token": token, "Expiration": aws.stamp(NOW + 3600)}
    document = answer(json.dumps({"Code": "Success", **found}))
    cloud = Cloud(GetMetricData=[metric_data([(MINUTE - 60, "1")])])
    metadata = scripted(answer("a-token"), answer("a-role"), document)
    with nothing_left(), Server(cloud) as server, Server(metadata) as instance, Server(scripted(document)) as container:
        asking = prober(server, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": instance.url})
        assert look(asking).value == look(asking).value == 1.0
        env = {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{container.url}/creds",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": "may-i",
        }
        assert look(prober(server, env)).value == 1.0
    assert [request.split(b" HTTP")[0] for request in instance.requests] == [
        b"PUT /latest/api/token",
        b"GET /latest/meta-data/iam/security-credentials/",
        b"GET /latest/meta-data/iam/security-credentials/a-role",
    ]
    assert b"X-aws-ec2-metadata-token: a-token\r\n" in instance.requests[2]
    assert b"Authorization: may-i\r\n" in container.requests[0]


@pytest.mark.parametrize(
    "replies", [(answer(status=404),), (answer("a b"),), (answer("t"), answer("r"), answer("{}")), (answer(),)]
)
def test_an_instance_that_answers_something_else(replies):
    cloud = Cloud(GetMetricData=[metric_data([])])
    with nothing_left(), Server(cloud) as server, Server(scripted(*replies)) as instance:
        reading = look(prober(server, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": instance.url}))
    assert reading.reason == "cloudwatch_credentials_missing"


def test_a_container_s_address_asks_the_policy_too():
    reading, _ = ask(metric_data([]), env={"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/x"})
    assert reading.reason == "cloudwatch_credentials_missing"
    assert "metadata service" in reading.detail["error"]


def test_credentials_of_a_web_identity(tmp_path):
    (tmp_path / "token").write_text("a.web.token\n")
    env = {"AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"), "AWS_ROLE_ARN": ROLE}
    action = "AssumeRoleWithWebIdentity"
    cloud = Cloud(GetMetricData=[metric_data([(MINUTE - 60, "1")])], **{action: [assumed(NOW + 3600, action)]})
    with nothing_left(), Server(cloud) as server:
        assert look(prober(server, env)).value == 1.0
        missing = look(prober(server, {**env, "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "none")}))
    assert cloud.asked[0]["WebIdentityToken"] == "a.web.token"
    assert "authorization" not in cloud.headers[0]
    assert missing.reason == "cloudwatch_credentials_missing"


def test_a_role_is_assumed_once_until_shortly_before_its_end():
    clock = Clock()
    cloud = Cloud(GetMetricData=[metric_data([(MINUTE - 60, "1")])], AssumeRole=[assumed(NOW + 3600)])
    with nothing_left(), Server(cloud) as server:
        asking = prober(server, clock=clock)
        for _ in range(2):
            assert look(asking, role_arn=ROLE, external_id="ours").value == 1.0
        clock.moment += 3600 - 299
        look(asking, role_arn=ROLE, external_id="ours")
    actions = [asked["Action"] for asked in cloud.asked]
    assert actions == ["AssumeRole", "GetMetricData", "GetMetricData", "AssumeRole", "GetMetricData"]
    first = cloud.asked[0]
    assert (first["RoleArn"], first["ExternalId"], first["RoleSessionName"]) == (ROLE, "ours", "observer-agent")
    assert first["DurationSeconds"] == "3600"
    assert f"Credential={TEMPORARY[0]}/" in cloud.headers[1]["authorization"]


def test_a_role_that_may_not_be_assumed_is_not_named():
    cloud = Cloud(AssumeRole=[aws.error("AccessDenied", 403, ROLE)], GetMetricData=[metric_data([])])
    with nothing_left(), Server(cloud) as server:
        reading = look(prober(server), role_arn=ROLE, external_id="very-external")
    assert (reading.reason, reading.detail["error"]) == ("cloudwatch_access_denied", "sts answered 403 (AccessDenied)")
    assert ROLE not in str(reading) and "very-external" not in str(reading)
    cloud = Cloud(AssumeRole=[answer("<a/>")], GetMetricData=[metric_data([])])
    with nothing_left(), Server(cloud) as server:
        assert look(prober(server), role_arn=ROLE).reason == "cloudwatch_error"


# -- configuration


@pytest.mark.parametrize(
    "statistic",
    "Average Sum Minimum Maximum SampleCount p0 p9 p10 p99 p99.9 p99.99 p100 tm90 wm98.5 tc1 ts50 IQM PR(:300) "
    "TM(10%:90%) TS(5.5%:)".split(),
)
def test_w35_statistics(statistic):
    assert probes.parse("cloudwatch", {**CONFIG, "statistic": statistic}).statistic == statistic


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("region", None),
        ("region", "EU"),
        ("region", "evil.example/"),
        ("region", "x" * 65),
        ("namespace", ""),
        ("metric_name", "x" * 256),
        ("dimensions", {"": "x"}),
        ("dimensions", {"x": "y" * 256}),
        ("dimensions", {str(n): "x" for n in range(31)}),
        ("statistic", "p101"),
        ("statistic", "average"),
        ("statistic", "p"),
        ("period_seconds", 61),
        ("period_seconds", 1),
        ("role_arn", "arn:aws:iam::1:role/x"),
        ("role_arn", "arn:aws:iam::123456789012:user/x"),
        ("external_id", "x"),
        ("external_id", "a b"),
        ("timeout_ms", 99),
        ("more", 1),
    ],
)
def test_configurations_that_are_refused(field, value):
    with pytest.raises(InvalidConfig, match=field):
        probes.parse("cloudwatch", {**CONFIG, field: value})


def test_defaults_are_filled_in():
    config = probes.parse("cloudwatch", {name: CONFIG[name] for name in ("region", "namespace", "metric_name")})
    assert (config.statistic, config.period, config.timeout, config.role_arn) == ("Average", 60, 15.0, None)
