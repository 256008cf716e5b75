import re

from mrcnn_ext.integrations.torchvision.benchmark import main


def test_prints_seconds_and_difference(capsys):
    main(["--models", "maskrcnn_resnet50_fpn", "--size", "64", "--repeats", "1", "--threads", "1"])
    row = capsys.readouterr().out.splitlines()[-1]
    seconds, fast, ratio, difference = re.findall(r"[\d.]+(?:e[+-]\d+)?(?= s? ?\|)", row)
    assert float(seconds) > 0 and float(fast) > 0 and float(difference) < 1e-4
