"""Output of board tools in its genuine forms, with numbers of our own.

The forms are those of public logs: snpe-diagview 2.9 and 2.37, snpe-throughput-net-run,
qnn-profile-viewer 2.13, the profile of onnxruntime's QNN provider, and TFLite's benchmark_model.
"""

from __future__ import annotations

DIAGVIEW_2_9 = """\
Interpreting file serialized with Flatbuffer
CREATE NETWORK: 254001
Log File Created: Tue Mar  3 09:14:27 2026
Time Scale: 1e-06
Epoch Timestamp: 1772529267123456 Steady Clock Timestamp: 81234567
Software library version: 2.9.0.4462

Dnn Runtime Load/Deserialize/Create/De-Init Statistics:
--------------------------------------------------
Load: 371 us
Deserialize: 15002 us
Create: 264001 us

Init: 283002 us
De-Init: 14702 us

Create Network(s): 254001 us
RPC Init Time: 3201 us
Snpe Accelerator Init Time: 3071 us
Accelerator Init Time: 3031 us

Average SNPE Statistics:
------------------------------
Total Inference Time: 4021 us
Forward Propagate Time: 3911 us
RPC Execute Time: 2113 us
Snpe Accelerator Time: 2077 us
Accelerator Time: 907 us
Misc Accelerator Time: 0 us

Layer Times: 
---------------
0: 0 cycles : DSP
1: 171717 cycles : DSP
2: 20202 cycles : DSP
"""

DIAGVIEW_2_37 = """\
Log File Created: Tue Mar  3 09:14:27 2026
Time Scale: 1e-06
Epoch Timestamp: 1772529267123456 Steady Clock Timestamp: 81234567
Software library version: 2.37.0.250724175447_124859
------------------------------------------------------------

SNPE Create Statistics:
----------------------------------------
  Load: 1801 us
  Deserialize: 901 us
  Create: 154001 us

  Init: 158001 us
  De-Init: 6601 us

  Create Network(s): 152001 us
  RPC Init Time: 1151 us
  Snpe Accelerator Init Time: 1091 us
  Accelerator Init Time: 1001 us

SNPE Execute Statistics (Averaged):
----------------------------------------
  Total Inference Time: 1741 us
  Forward Propagate Time: 1702 us
  RPC Execute Time: 613 us
  Snpe Accelerator Time: 571 us
  Num times yield occurred: 0
  Accelerator Time: 333 us

  Per-Subnet Execution Times: 
  ------------------------------
    Subnet 0 (DSP) : 16161 cycles

  Per-Layer Execution Times: 
  ------------------------------
    0: Input OpId_2 (cycles) : 2121 cycles : DSP
    1: 0/body/Conv:OpId_18 (cycles) : 9191 cycles : DSP
    2: Output OpId_3 (cycles) : 4949 cycles : DSP
"""

DIAGVIEW_CPU = """\
Log File Created: Tue Mar  3 09:14:27 2026
Time Scale: 1e-06
Epoch Timestamp: 1772529267123456 Steady Clock Timestamp: 81234567
Software library version: 2.37.0.250724175447_124859
------------------------------------------------------------

SNPE Execute Statistics (Averaged):
----------------------------------------
  Total Inference Time: 71 us
  Forward Propagate Time: 68 us
  RPC Execute Time: 0 
  Snpe Accelerator Time: 0 
  Num times yield occurred: 0
  Accelerator Time: 0 

  Per-Subnet Execution Times: 
  ------------------------------
    Subnet 0 (CPU) : 62 us

  Per-Layer Execution Times: 
  ------------------------------
    0: 0/body/Conv : 41 us : CPU
    1: 0/pool/GlobalAveragePool : 3 us : CPU
"""

THROUGHPUT = (
    "[Thread 0 - dsp_fixed8_tf] 402.00 infs/sec - Number of images processed: 4020 - "
    "Build time: 650001 microseconds - Elapsed time: 10000000 microseconds - "
    "Real time: 9990001 microseconds - Teardown time: 10001 microseconds - Batch : 1\n"
    "Total throughput: 402.00 infs/sec     \n"
)

THROUGHPUT_402 = (
    "[Instance 0 - dsp_fixed8_tf] Unable to successfully create SNPE instance. Will continue to "
    "creation of other SNPE instance(s).container=m.dlc; perf_profile=burst;  error_code=402; "
    "error_message=Network partition has failed. error_code=402; error_message=Network partition "
    "has failed. Fallback runtime needed for this offline cache record 0; error_component=Dl "
    "Network; line_no=950; thread_id=1; error_component=Dl Network; line_no=276; thread_id=2\n"
    "Error: Requested 1 instances of SNPE, Could not create any.. Exiting.\n"
)

QNN_VIEWER = """\
Qnn Init/Prepare/Finalize/De-Init/Execute/Lib-Load Statistics:

Init Stats:
---
    NetRun:  331001 us

Compose Graphs Stats:
---
    NetRun:  74001 us

Finalize Stats:
Graph 0 (model):
    NetRun:  256001 us
    Backend (RPC (finalize) time): 4901 us
    Backend (QNN accelerator (finalize) time): 4501 us
    Backend (Accelerator (finalize) time): 4401 us
    Backend (QNN (finalize) time): 256000 us

De-Init Stats:
---
    NetRun:  15801 us
    Backend (RPC (deinit) time): 1221 us
    Backend (QNN (deinit) time): 15800 us

Execute Stats (Average):
Total Inference Time:
Graph 0 (model):
    NetRun:  2701 us
    Backend (Number of HVX threads used): 4 count
    Backend (RPC (execute) time): 2671 us
    Backend (QNN accelerator (execute) time): 2401 us
    Backend (Accelerator (execute) time): 2301 us
    Backend (QNN (execute) time): 2691 us

Execute Stats (Overall):
---
    NetRun IPS:  370.2332 inf/sec
"""

QNN_BASIC = """\
Msg Timestamp,Message,Time,Unit of Measurement,Timing Source,Event Level,Event Identifier
0,FINALIZE,253001,US,BACKEND,ROOT,QNN (finalize) time
0,BACKEND,4,COUNT,BACKEND,ROOT,Number of HVX threads used
0,BACKEND,1301,US,BACKEND,ROOT,Accelerator (execute) time
0,EXECUTE,1391,US,BACKEND,ROOT,QNN (execute) time
0,BACKEND,4,COUNT,BACKEND,ROOT,Number of HVX threads used
0,BACKEND,1307,US,BACKEND,ROOT,Accelerator (execute) time
0,EXECUTE,1401,US,BACKEND,ROOT,QNN (execute) time
"""

QNN_DETAILED = """\
Msg Timestamp,Message,Time,Unit of Measurement,Timing Source,Event Level,Event Identifier
0,FINALIZE,256001,US,BACKEND,ROOT,QNN (finalize) time
0,UNKNOWN,201,US,BACKEND,SUB-EVENT,Graph Preparation Initializing
0,BACKEND,4,COUNT,BACKEND,ROOT,Number of HVX threads used
0,BACKEND,0,COUNT,BACKEND,ROOT,Num times yield occured
0,BACKEND,801,US,BACKEND,ROOT,Time for initial VTCM acquire
0,BACKEND,901234,CYCLES,BACKEND,ROOT,Accelerator (execute) time (cycles)
0,NODE,0,CYCLES,BACKEND,SUB-EVENT,Input OpId_2 (cycles)
0,NODE,801234,CYCLES,BACKEND,SUB-EVENT,0/body/Conv_token_1:OpId_28 (cycles)
0,BACKEND,1303,US,BACKEND,ROOT,Accelerator (execute) time
0,EXECUTE,1393,US,BACKEND,ROOT,QNN (execute) time
"""

TFLITE_HEAD = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Graph: [/data/local/tmp/m.tflite]
INFO: External delegate path: [/data/local/tmp/libQnnTFLiteDelegate.so]
INFO: External delegate options: [backend_type:htp;]
INFO: Loaded model /data/local/tmp/m.tflite
INFO: Initialized TensorFlow Lite runtime.
INFO: EXTERNAL delegate created.
"""

TFLITE_WHOLE = (
    TFLITE_HEAD
    + """\
VERBOSE: Replacing 31 out of 31 node(s) with delegate (TfLiteQnnDelegate) node, yielding 1 \
partitions for the whole graph.
INFO: Explicitly applied EXTERNAL delegate, and the model graph will be completely executed by \
the delegate.
INFO: The input model file size (MB): 1.20101
INFO: Initialized session in 170.101ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if \
exceeding 150 seconds.
INFO: count=40 first=2105 curr=1208 min=1173 max=2105 avg=1223 std=49

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if \
exceeding 150 seconds.
INFO: count=50 first=1192 curr=1180 min=1137 max=1247 avg=1193.5 std=19

INFO: Inference timings in us: Init: 170101, First inference: 2105, Warmup (avg): 1223, Inference \
(avg): 1193.5
"""
)

TFLITE_NONE = (
    TFLITE_HEAD
    + """\
INFO: TfLiteQnnDelegate delegate: 0 nodes delegated out of 31 nodes with 0 partitions.

INFO: Though EXTERNAL delegate is explicitly applied, the model graph will not be executed by \
the delegate.
"""
)
