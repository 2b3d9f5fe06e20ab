// Every way to say where and what.
// RUN: moeloom-opt %s -p moe-fuse-quant-sort --split-input-file --verify-diagnostics

func.func @places(%s: tensor<?x2xf8E8M0FNU>, %ids: tensor<?xi32>, %nv: tensor<2xi32>) {
  // expected-remark@+1 {{pre-quantised}}
  %a = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "row_major"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x2xf8E8M0FNU>
  %b = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "row_major"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x2xf8E8M0FNU>
  // expected-remark@-1 {{pre-quantised}}
  // expected-remark@below {{stage {{[12]}} of @{{p.*s}}: scales come from elsewhere (pre-quantised input)}}
  %c = "moe.sort_scales"(%s, %ids, %nv) {stage = 2 : i64, topk = 2 : i64, layout = "row_major"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x2xf8E8M0FNU>
  return
}

// -----

func.func @places_above(%s: tensor<?x2xf8E8M0FNU>, %ids: tensor<?xi32>, %nv: tensor<2xi32>) {
  %a = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "row_major"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x2xf8E8M0FNU>
  // expected-remark@above {{pre-quantised}}
  %b = "moe.sort_scales"(%s, %ids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "row_major"} : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x2xf8E8M0FNU> // expected-remark {{pre-quantised}}
  return
}

// -----

// expected-error@26 {{custom op 'what' is unknown}}
what
