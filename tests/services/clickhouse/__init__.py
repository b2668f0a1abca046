"""The ClickHouse engine behind a stand-in for the server's HTTP interface, as a child process."""

from tests.services.clickhouse.service import ClickHouseHttp as ClickHouseHttp
from tests.services.clickhouse.service import clickhouse_http as clickhouse_http
