"""An Apache Kafka broker of the tests' own, resolved by Maven and run by the Java found here."""

from tests.services.kafka.broker import RealKafka as RealKafka
from tests.services.kafka.broker import real_kafka as real_kafka
