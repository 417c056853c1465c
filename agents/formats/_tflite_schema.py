"""The tables of TFLite files, all fields of LiteRT 2.3's schema, for `_flatbuffer.parse`."""

from __future__ import annotations

from ._flatbuffer import schema_of

TENSOR_TYPES = (
    "FLOAT32",
    "FLOAT16",
    "INT32",
    "UINT8",
    "INT64",
    "STRING",
    "BOOL",
    "INT16",
    "COMPLEX64",
    "INT8",
    "FLOAT64",
    "COMPLEX128",
    "UINT64",
    "RESOURCE",
    "VARIANT",
    "UINT32",
    "UINT16",
    "INT4",
    "BFLOAT16",
    "INT2",
    "UINT4",
    "FLOAT8_E4M3FN",
    "FLOAT8_E5M2",
)
"""By number."""

SCHEMA = schema_of(
    {
        "CustomQuantization": "custom bytes",
        "BlockwiseQuantization": (
            "scales int32, zero_points int32, block_size int32, block_shape int32*"
        ),
        "MultiAxisQuantization": (
            "scales int32, zero_points int32, block_size int32, quantized_dimensions int32*"
        ),
        "QuantizationParameters": (
            "min float32*, max float32*, scale float32*, zero_point int64*, "
            "details QuantizationDetails, quantized_dimension int32"
        ),
        "Int32Vector": "values int32*",
        "Uint16Vector": "values uint16*",
        "Uint8Vector": "values uint8*",
        "DimensionMetadata": (
            "format DimensionType, dense_size int32, array_segments SparseIndexVector, "
            "array_indices SparseIndexVector"
        ),
        "SparsityParameters": (
            "traversal_order int32*, block_map int32*, dim_metadata DimensionMetadata*"
        ),
        "VariantSubType": "shape int32*, type TensorType, has_rank bool",
        "Tensor": (
            "shape int32*, type TensorType, buffer uint32, name name, "
            "quantization QuantizationParameters, is_variable bool, sparsity SparsityParameters, "
            "shape_signature int32*, has_rank bool, variant_tensors VariantSubType*, "
            "external_buffer uint32"
        ),
        "StablehloGatherOptions": (
            "offset_dims int64*, collapsed_slice_dims int64*, start_index_map int64*, "
            "index_vector_dim int64, slice_sizes int64*, indices_are_sorted bool"
        ),
        "StablehloTransposeOptions": "permutation int64*",
        "StablehloDotGeneralOptions": (
            "lhs_batching_dimensions int64*, rhs_batching_dimensions int64*, "
            "lhs_contracting_dimensions int64*, rhs_contracting_dimensions int64*, "
            "precision_config uint32*"
        ),
        "StablehloReduceWindowOptions": (
            "window_dimensions int64*, window_strides int64*, base_dilations int64*, "
            "window_dilations int64*, padding int64*, body_subgraph_index int32"
        ),
        "StablehloWhileOptions": "cond_subgraph_index int32, body_subgraph_index int32",
        "StablehloSortOptions": "dimension int64, is_stable bool, comparator_subgraph_index int32",
        "StablehloConcatenateOptions": "dimension int64",
        "StablehloBroadcastInDimOptions": "broadcast_dimensions int64*",
        "StablehloCompareOptions": (
            "comparison_direction StablehloComparisonDirection, "
            "compare_type StablehloComparisonType"
        ),
        "StablehloDynamicSliceOptions": "slice_sizes int64*",
        "StablehloPadOptions": (
            "edge_padding_low int64*, edge_padding_high int64*, interior_padding int64*"
        ),
        "StablehloIotaOptions": "iota_dimension int64",
        "StablehloCustomCallOptions": (
            "call_target_name text, has_side_effect bool, backend_config text, "
            "api_version int32, called_computations int32*, custom_attributes bytes"
        ),
        "StablehloReduceOptions": "dimensions int64*, body_subgraph_index int32",
        "StablehloSliceOptions": "start_indices int64*, limit_indices int64*, strides int64*",
        "StablehloConvolutionOptions": (
            "window_strides int64*, padding int64*, lhs_dilation int64*, rhs_dilation int64*, "
            "window_reversal bool*, input_batch_dimension int64, input_feature_dimension int64, "
            "input_spatial_dimensions int64*, kernel_input_feature_dimension int64, "
            "kernel_output_feature_dimension int64, kernel_spatial_dimensions int64*, "
            "output_batch_dimension int64, output_feature_dimension int64, "
            "output_spatial_dimensions int64*, feature_group_count int64, "
            "batch_group_count int64, precision_config uint32*"
        ),
        "StablehloScatterOptions": (
            "indices_are_sorted bool, update_window_dims int64*, inserted_window_dims int64*, "
            "scatter_dims_to_operand_dims int64*, index_vector_dim int64, unique_indices bool, "
            "update_computation_subgraph_index int32"
        ),
        "StablehloCaseOptions": "branch_subgraph_indices int32*",
        "StablehloRngBitGeneratorOptions": "algorithm RngAlgorithm",
        "Conv2DOptions": (
            "padding Padding, stride_w int32, stride_h int32, "
            "fused_activation_function ActivationFunctionType, dilation_w_factor int32=1, "
            "dilation_h_factor int32=1, quantized_bias_type TensorType"
        ),
        "Conv3DOptions": (
            "padding Padding, stride_d int32, stride_w int32, stride_h int32, "
            "fused_activation_function ActivationFunctionType, dilation_d_factor int32=1, "
            "dilation_w_factor int32=1, dilation_h_factor int32=1"
        ),
        "Pool2DOptions": (
            "padding Padding, stride_w int32, stride_h int32, filter_width int32, "
            "filter_height int32, fused_activation_function ActivationFunctionType"
        ),
        "DepthwiseConv2DOptions": (
            "padding Padding, stride_w int32, stride_h int32, depth_multiplier int32, "
            "fused_activation_function ActivationFunctionType, dilation_w_factor int32=1, "
            "dilation_h_factor int32=1"
        ),
        "ConcatEmbeddingsOptions": (
            "num_channels int32, num_columns_per_channel int32*, embedding_dim_per_channel int32*"
        ),
        "LSHProjectionOptions": "type LSHProjectionType",
        "SVDFOptions": (
            "rank int32, fused_activation_function ActivationFunctionType, "
            "asymmetric_quantize_inputs bool"
        ),
        "RNNOptions": (
            "fused_activation_function ActivationFunctionType, asymmetric_quantize_inputs bool"
        ),
        "SequenceRNNOptions": (
            "time_major bool, fused_activation_function ActivationFunctionType, "
            "asymmetric_quantize_inputs bool"
        ),
        "BidirectionalSequenceRNNOptions": (
            "time_major bool, fused_activation_function ActivationFunctionType, "
            "merge_outputs bool, asymmetric_quantize_inputs bool"
        ),
        "FullyConnectedOptions": (
            "fused_activation_function ActivationFunctionType, "
            "weights_format FullyConnectedOptionsWeightsFormat, keep_num_dims bool, "
            "asymmetric_quantize_inputs bool, quantized_bias_type TensorType, quant_spec bytes"
        ),
        "SoftmaxOptions": "beta float32",
        "ConcatenationOptions": "axis int32, fused_activation_function ActivationFunctionType",
        "AddOptions": "fused_activation_function ActivationFunctionType, pot_scale_int16 bool=1",
        "MulOptions": "fused_activation_function ActivationFunctionType",
        "L2NormOptions": "fused_activation_function ActivationFunctionType",
        "LocalResponseNormalizationOptions": (
            "radius int32, bias float32, alpha float32, beta float32"
        ),
        "LSTMOptions": (
            "fused_activation_function ActivationFunctionType, cell_clip float32, "
            "proj_clip float32, kernel_type LSTMKernelType, asymmetric_quantize_inputs bool"
        ),
        "UnidirectionalSequenceLSTMOptions": (
            "fused_activation_function ActivationFunctionType, cell_clip float32, "
            "proj_clip float32, time_major bool, asymmetric_quantize_inputs bool, "
            "diagonal_recurrent_tensors bool"
        ),
        "BidirectionalSequenceLSTMOptions": (
            "fused_activation_function ActivationFunctionType, cell_clip float32, "
            "proj_clip float32, merge_outputs bool, time_major bool=1, "
            "asymmetric_quantize_inputs bool"
        ),
        "ResizeBilinearOptions": (
            "deprecated_new_height int32, deprecated_new_width int32, align_corners bool, "
            "half_pixel_centers bool"
        ),
        "ResizeNearestNeighborOptions": "align_corners bool, half_pixel_centers bool",
        "CallOptions": "subgraph uint32",
        "PadOptions": "",
        "PadV2Options": "",
        "ReshapeOptions": "new_shape int32*",
        "SpaceToBatchNDOptions": "",
        "BatchToSpaceNDOptions": "",
        "SkipGramOptions": "ngram_size int32, max_skip_size int32, include_all_ngrams bool",
        "SpaceToDepthOptions": "block_size int32",
        "DepthToSpaceOptions": "block_size int32",
        "SubOptions": "fused_activation_function ActivationFunctionType, pot_scale_int16 bool=1",
        "DivOptions": "fused_activation_function ActivationFunctionType",
        "TopKV2Options": "",
        "EmbeddingLookupSparseOptions": "combiner CombinerType",
        "GatherOptions": "axis int32, batch_dims int32",
        "TransposeOptions": "",
        "ExpOptions": "",
        "CosOptions": "",
        "ReducerOptions": "keep_dims bool",
        "SqueezeOptions": "squeeze_dims int32*",
        "SplitOptions": "num_splits int32",
        "SplitVOptions": "num_splits int32",
        "StridedSliceOptions": (
            "begin_mask int32, end_mask int32, ellipsis_mask int32, new_axis_mask int32, "
            "shrink_axis_mask int32, offset bool"
        ),
        "LogSoftmaxOptions": "",
        "CastOptions": "in_data_type TensorType, out_data_type TensorType",
        "DequantizeOptions": "",
        "MaximumMinimumOptions": "",
        "TileOptions": "",
        "ArgMaxOptions": "output_type TensorType",
        "ArgMinOptions": "output_type TensorType",
        "GreaterOptions": "",
        "GreaterEqualOptions": "",
        "LessOptions": "",
        "LessEqualOptions": "",
        "NegOptions": "",
        "SelectOptions": "",
        "SliceOptions": "",
        "TransposeConvOptions": (
            "padding Padding, stride_w int32, stride_h int32, "
            "fused_activation_function ActivationFunctionType, quantized_bias_type TensorType"
        ),
        "ExpandDimsOptions": "",
        "SparseToDenseOptions": "validate_indices bool",
        "EqualOptions": "",
        "NotEqualOptions": "",
        "ShapeOptions": "out_type TensorType",
        "RankOptions": "",
        "PowOptions": "",
        "FakeQuantOptions": "min float32, max float32, num_bits int32, narrow_range bool",
        "PackOptions": "values_count int32, axis int32",
        "LogicalOrOptions": "",
        "OneHotOptions": "axis int32",
        "AbsOptions": "",
        "HardSwishOptions": "",
        "LogicalAndOptions": "",
        "LogicalNotOptions": "",
        "UnpackOptions": "num int32, axis int32",
        "FloorDivOptions": "",
        "SquareOptions": "",
        "ZerosLikeOptions": "",
        "FillOptions": "",
        "FloorModOptions": "",
        "RangeOptions": "",
        "LeakyReluOptions": "alpha float32",
        "SquaredDifferenceOptions": "",
        "MirrorPadOptions": "mode MirrorPadMode",
        "UniqueOptions": "idx_out_type TensorType=2",
        "ReverseV2Options": "",
        "AddNOptions": "",
        "GatherNdOptions": "",
        "WhereOptions": "",
        "ReverseSequenceOptions": "seq_dim int32, batch_dim int32",
        "MatrixDiagOptions": "",
        "QuantizeOptions": "",
        "MatrixSetDiagOptions": "",
        "IfOptions": "then_subgraph_index int32, else_subgraph_index int32",
        "CallOnceOptions": "init_subgraph_index int32",
        "WhileOptions": "cond_subgraph_index int32, body_subgraph_index int32",
        "NonMaxSuppressionV4Options": "",
        "NonMaxSuppressionV5Options": "",
        "ScatterNdOptions": "",
        "SelectV2Options": "",
        "DensifyOptions": "",
        "SegmentSumOptions": "",
        "BatchMatMulOptions": "adj_x bool, adj_y bool, asymmetric_quantize_inputs bool",
        "CumsumOptions": "exclusive bool, reverse bool",
        "BroadcastToOptions": "",
        "Rfft2dOptions": "",
        "HashtableOptions": "table_id int32, key_dtype TensorType, value_dtype TensorType",
        "HashtableFindOptions": "",
        "HashtableImportOptions": "",
        "HashtableSizeOptions": "",
        "VarHandleOptions": "container text, shared_name text",
        "ReadVariableOptions": "",
        "AssignVariableOptions": "",
        "RandomOptions": "seed int64, seed2 int64",
        "BucketizeOptions": "boundaries float32*",
        "GeluOptions": "approximate bool",
        "DynamicUpdateSliceOptions": "",
        "UnsortedSegmentProdOptions": "",
        "UnsortedSegmentMaxOptions": "",
        "UnsortedSegmentSumOptions": "",
        "ATan2Options": "",
        "UnsortedSegmentMinOptions": "",
        "SignOptions": "",
        "BitcastOptions": "",
        "BitwiseXorOptions": "",
        "RightShiftOptions": "",
        "DilateOptions": "",
        "ReduceWindowOptions": "reduce_function ReduceWindowFunction",
        "OperatorCode": (
            "deprecated_builtin_code int8, custom_code name, version int32=1, builtin_code int32"
        ),
        "StableHLOCompositeOptions": (
            "name text, decomposition_subgraph_index int32, composite_attributes bytes, "
            "composite_attributes_format CustomOptionsFormat, version int32"
        ),
        "StablehloShiftLeftOptions": "",
        "Operator": (
            "opcode_index uint32, inputs int32*, outputs int32*, builtin_options BuiltinOptions, "
            "custom_options bytes, custom_options_format CustomOptionsFormat, "
            "mutating_variable_inputs bool*, intermediates int32*, "
            "large_custom_options_offset uint64, large_custom_options_size uint64, "
            "builtin_options_2 BuiltinOptions2, debug_metadata_index int32=-1"
        ),
        "SubGraph": (
            "tensors Tensor*, inputs int32*, outputs int32*, operators Operator*, name text, "
            "debug_metadata_index int32=-1"
        ),
        "Buffer": "data bytes, offset uint64, size uint64",
        "ExternalBufferGroup": "name text",
        "ExternalBuffer": "id uint32, group uint32, offset uint64, length uint64, packing text",
        "Metadata": "name name, buffer uint32",
        "TensorMap": "name name, tensor_index uint32",
        "SignatureDef": (
            "inputs TensorMap*, outputs TensorMap*, signature_key name, deprecated_tag text, "
            "subgraph_index uint32"
        ),
        "Model": (
            "version uint32, operator_codes OperatorCode*, subgraphs SubGraph*, "
            "description text, buffers Buffer*, metadata_buffer int32*, metadata Metadata*, "
            "signature_defs SignatureDef*, external_buffer_groups ExternalBufferGroup*, "
            "external_buffers ExternalBuffer*"
        ),
    },
    {
        "TensorType": ("int8", len(TENSOR_TYPES)),
        "DimensionType": ("int8", 2),
        "Padding": ("int8", 2),
        "ActivationFunctionType": ("int8", 6),
        "LSHProjectionType": ("int8", 3),
        "FullyConnectedOptionsWeightsFormat": ("int8", 2),
        "LSTMKernelType": ("int8", 2),
        "CombinerType": ("int8", 3),
        "MirrorPadMode": ("int8", 2),
        "ReduceWindowFunction": ("int32", 7),
        "CustomOptionsFormat": ("int8", 1),
        "StablehloComparisonDirection": ("uint32", 6),
        "StablehloComparisonType": ("uint32", 5),
        "RngAlgorithm": ("int8", 3),
    },
    {
        "QuantizationDetails": (
            "CustomQuantization",
            "BlockwiseQuantization",
            "MultiAxisQuantization",
        ),
        "SparseIndexVector": (
            "Int32Vector",
            "Uint16Vector",
            "Uint8Vector",
        ),
        "BuiltinOptions": (
            "Conv2DOptions",
            "DepthwiseConv2DOptions",
            "ConcatEmbeddingsOptions",
            "LSHProjectionOptions",
            "Pool2DOptions",
            "SVDFOptions",
            "RNNOptions",
            "FullyConnectedOptions",
            "SoftmaxOptions",
            "ConcatenationOptions",
            "AddOptions",
            "L2NormOptions",
            "LocalResponseNormalizationOptions",
            "LSTMOptions",
            "ResizeBilinearOptions",
            "CallOptions",
            "ReshapeOptions",
            "SkipGramOptions",
            "SpaceToDepthOptions",
            "EmbeddingLookupSparseOptions",
            "MulOptions",
            "PadOptions",
            "GatherOptions",
            "BatchToSpaceNDOptions",
            "SpaceToBatchNDOptions",
            "TransposeOptions",
            "ReducerOptions",
            "SubOptions",
            "DivOptions",
            "SqueezeOptions",
            "SequenceRNNOptions",
            "StridedSliceOptions",
            "ExpOptions",
            "TopKV2Options",
            "SplitOptions",
            "LogSoftmaxOptions",
            "CastOptions",
            "DequantizeOptions",
            "MaximumMinimumOptions",
            "ArgMaxOptions",
            "LessOptions",
            "NegOptions",
            "PadV2Options",
            "GreaterOptions",
            "GreaterEqualOptions",
            "LessEqualOptions",
            "SelectOptions",
            "SliceOptions",
            "TransposeConvOptions",
            "SparseToDenseOptions",
            "TileOptions",
            "ExpandDimsOptions",
            "EqualOptions",
            "NotEqualOptions",
            "ShapeOptions",
            "PowOptions",
            "ArgMinOptions",
            "FakeQuantOptions",
            "PackOptions",
            "LogicalOrOptions",
            "OneHotOptions",
            "LogicalAndOptions",
            "LogicalNotOptions",
            "UnpackOptions",
            "FloorDivOptions",
            "SquareOptions",
            "ZerosLikeOptions",
            "FillOptions",
            "BidirectionalSequenceLSTMOptions",
            "BidirectionalSequenceRNNOptions",
            "UnidirectionalSequenceLSTMOptions",
            "FloorModOptions",
            "RangeOptions",
            "ResizeNearestNeighborOptions",
            "LeakyReluOptions",
            "SquaredDifferenceOptions",
            "MirrorPadOptions",
            "AbsOptions",
            "SplitVOptions",
            "UniqueOptions",
            "ReverseV2Options",
            "AddNOptions",
            "GatherNdOptions",
            "CosOptions",
            "WhereOptions",
            "RankOptions",
            "ReverseSequenceOptions",
            "MatrixDiagOptions",
            "QuantizeOptions",
            "MatrixSetDiagOptions",
            "HardSwishOptions",
            "IfOptions",
            "WhileOptions",
            "DepthToSpaceOptions",
            "NonMaxSuppressionV4Options",
            "NonMaxSuppressionV5Options",
            "ScatterNdOptions",
            "SelectV2Options",
            "DensifyOptions",
            "SegmentSumOptions",
            "BatchMatMulOptions",
            "CumsumOptions",
            "CallOnceOptions",
            "BroadcastToOptions",
            "Rfft2dOptions",
            "Conv3DOptions",
            "HashtableOptions",
            "HashtableFindOptions",
            "HashtableImportOptions",
            "HashtableSizeOptions",
            "VarHandleOptions",
            "ReadVariableOptions",
            "AssignVariableOptions",
            "RandomOptions",
            "BucketizeOptions",
            "GeluOptions",
            "DynamicUpdateSliceOptions",
            "UnsortedSegmentProdOptions",
            "UnsortedSegmentMaxOptions",
            "UnsortedSegmentMinOptions",
            "UnsortedSegmentSumOptions",
            "ATan2Options",
            "SignOptions",
            "BitcastOptions",
            "BitwiseXorOptions",
            "RightShiftOptions",
        ),
        "BuiltinOptions2": (
            "StablehloConcatenateOptions",
            "StablehloBroadcastInDimOptions",
            "StablehloSliceOptions",
            "StablehloConvolutionOptions",
            "StablehloCustomCallOptions",
            "StablehloReduceOptions",
            "StablehloScatterOptions",
            "StablehloCompareOptions",
            "StablehloDynamicSliceOptions",
            "StablehloPadOptions",
            "StablehloIotaOptions",
            "StablehloDotGeneralOptions",
            "StablehloReduceWindowOptions",
            "StablehloSortOptions",
            "StablehloWhileOptions",
            "StablehloGatherOptions",
            "StablehloTransposeOptions",
            "DilateOptions",
            "StablehloRngBitGeneratorOptions",
            "ReduceWindowOptions",
            "StableHLOCompositeOptions",
            "StablehloShiftLeftOptions",
            "StablehloCaseOptions",
        ),
    },
)
