#!/usr/bin/env bash
# Makes a trace for `evalpool load --trace` from the invocations of Azure Functions that Microsoft published in 2021:
# https://github.com/Azure/AzurePublicDataset, AzureFunctionsInvocationTrace2021.md. Reads CSV on standard input
# (app,func,end_timestamp,duration; seconds), and writes time,evaluator,input-size in the order of the beginnings.
#
#   tests/traces/from-azure.sh [FROM [SECONDS [SPEED [SIZE]]]] < invocations.csv | gzip > trace.csv.gz
#
# Of what begins from FROM on (0), for so many SECONDS (all), as if time ran SPEED times as fast (1). That data does not
# say how large inputs were: each has SIZE bytes (128). An app is a customer, and so the part of the name before the `/`;
# of each name, 16 characters are enough to tell them apart.
set -euo pipefail
export LC_ALL=C
echo time,evaluator,input-size
awk -F, -v from="${1:-0}" -v seconds="${2:-1e18}" -v speed="${3:-1}" -v size="${4:-128}" '
    { sub(/\r$/, "") }
    NR == 1 && $1 == "app" { next }
    NF != 4 || $3 $4 !~ /^[-+.eE0-9]+$/ {
        print "line " NR ": expected app,func,end_timestamp,duration" >"/dev/stderr"
        failed = 1
        exit 1
    }
    {
        at = $3 - $4 - from
        if (at >= 0 && at < seconds)
            printf "%.6f,%s/%s,%d\n", at / speed, substr($1, 1, 16), substr($2, 1, 16), size
    }
' | sort -t, -k1,1n -s
